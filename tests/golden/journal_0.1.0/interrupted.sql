PRAGMA user_version=3;
BEGIN TRANSACTION;
CREATE TABLE plays (
    prompt_id TEXT NOT NULL, play INTEGER NOT NULL, seed INTEGER NOT NULL, written_s REAL NOT NULL,
    agent TEXT NOT NULL, kind TEXT NOT NULL, refs TEXT NOT NULL, parent INTEGER, depth INTEGER NOT NULL,
    reward REAL, second_reward REAL, reward_flops REAL, finish_reason TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, flops REAL,
    error TEXT, response TEXT, reasoning TEXT,
    PRIMARY KEY (prompt_id, play)
);
INSERT INTO "plays" VALUES('sky',0,2123132388,1.79593893197198939326e+09,'first','answer','[]',NULL,0,0.07,NULL,NULL,'stop',5,7,NULL,NULL,'first 2123132388: Why is the sky blue?',NULL);
INSERT INTO "plays" VALUES('primes',0,1339507611,1.79593893197198939326e+09,'first','answer','[]',NULL,0,0.06,NULL,NULL,'stop',4,6,NULL,NULL,'first 1339507611: Name three prime numbers.',NULL);
INSERT INTO "plays" VALUES('sky',1,1524889059,1.79593893202438330651e+09,'second','answer','[]',NULL,0,0.07,NULL,NULL,'stop',5,7,NULL,NULL,'second 1524889059: Why is the sky blue?',NULL);
INSERT INTO "plays" VALUES('primes',1,19936380,1.79593893202438330651e+09,'second','answer','[]',NULL,0,0.06,NULL,NULL,'stop',4,6,NULL,NULL,'second 19936380: Name three prime numbers.',NULL);
INSERT INTO "plays" VALUES('sky',2,144679129,1.7959389320765321255e+09,'first','answer','[]',NULL,0,0.07,NULL,NULL,'stop',5,7,NULL,NULL,'first 144679129: Why is the sky blue?',NULL);
INSERT INTO "plays" VALUES('primes',2,1230025627,1.7959389320765321255e+09,'first','answer','[]',NULL,0,0.06,NULL,NULL,'stop',4,6,NULL,NULL,'first 1230025627: Name three prime numbers.',NULL);
INSERT INTO "plays" VALUES('sky',3,1177297891,1.79593893212888407705e+09,'first','refine','[1]',1,1,0.14,NULL,NULL,'stop',73,14,NULL,NULL,'first 1177297891: Why is the sky blue? --- Another assistant has drafted this reply',NULL);
INSERT INTO "plays" VALUES('primes',3,87384485,1.79593893212888407705e+09,'first','refine','[1]',1,1,0.14,NULL,NULL,'stop',71,14,NULL,NULL,'first 87384485: Name three prime numbers. --- Another assistant has drafted this reply to',NULL);
INSERT INTO "plays" VALUES('sky',4,2026975277,1.79593893218109202387e+09,'second','refine','[1]',1,1,0.14,NULL,NULL,'stop',73,14,NULL,NULL,'second 2026975277: Why is the sky blue? --- Another assistant has drafted this reply',NULL);
INSERT INTO "plays" VALUES('primes',4,597339422,1.79593893218109202387e+09,'second','refine','[1]',1,1,0.14,NULL,NULL,'stop',71,14,NULL,NULL,'second 597339422: Name three prime numbers. --- Another assistant has drafted this reply to',NULL);
INSERT INTO "plays" VALUES('sky',5,1670763745,1.79593893223776483541e+09,'first','refine','[2]',2,1,0.14,NULL,NULL,'stop',73,14,NULL,NULL,'first 1670763745: Why is the sky blue? --- Another assistant has drafted this reply',NULL);
INSERT INTO "plays" VALUES('primes',5,629597886,1.79593893223776483541e+09,'first','refine','[2]',2,1,0.14,NULL,NULL,'stop',71,14,NULL,NULL,'first 629597886: Name three prime numbers. --- Another assistant has drafted this reply to',NULL);
INSERT INTO "plays" VALUES('sky',6,2060680347,1.79593893228989982605e+09,'first','refine','[3]',3,2,0.14,NULL,NULL,'stop',80,14,NULL,NULL,'first 2060680347: Why is the sky blue? --- Another assistant has drafted this reply',NULL);
INSERT INTO "plays" VALUES('primes',6,1441515320,1.79593893228989982605e+09,'first','refine','[3]',3,2,0.14,NULL,NULL,'stop',79,14,NULL,NULL,'first 1441515320: Name three prime numbers. --- Another assistant has drafted this reply to',NULL);
INSERT INTO "plays" VALUES('sky',7,1718018727,1.79593893234215617182e+09,'second','refine','[2]',2,1,0.14,NULL,NULL,'stop',73,14,NULL,NULL,'second 1718018727: Why is the sky blue? --- Another assistant has drafted this reply',NULL);
INSERT INTO "plays" VALUES('primes',7,601203392,1.79593893234215617182e+09,'second','refine','[2]',2,1,0.14,NULL,NULL,'stop',71,14,NULL,NULL,'second 601203392: Name three prime numbers. --- Another assistant has drafted this reply to',NULL);
INSERT INTO "plays" VALUES('sky',8,2056308787,1.79593893239444398878e+09,'first','refine','[4]',4,2,0.14,NULL,NULL,'stop',80,14,NULL,NULL,'first 2056308787: Why is the sky blue? --- Another assistant has drafted this reply',NULL);
INSERT INTO "plays" VALUES('primes',8,257906757,1.79593893239444398878e+09,'first','refine','[4]',4,2,0.14,NULL,NULL,'stop',79,14,NULL,NULL,'first 257906757: Name three prime numbers. --- Another assistant has drafted this reply to',NULL);
INSERT INTO "plays" VALUES('sky',9,933963869,1.79593893245028781886e+09,'first','refine','[5]',5,2,0.14,NULL,NULL,'stop',80,14,NULL,NULL,'first 933963869: Why is the sky blue? --- Another assistant has drafted this reply',NULL);
INSERT INTO "plays" VALUES('primes',9,24286329,1.79593893245028781886e+09,'first','refine','[5]',5,2,0.14,NULL,NULL,'stop',79,14,NULL,NULL,'first 24286329: Name three prime numbers. --- Another assistant has drafted this reply to',NULL);
CREATE TABLE prompts (position INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, messages TEXT NOT NULL, metadata TEXT NOT NULL);
INSERT INTO "prompts" VALUES(0,'sky','[{"role": "user", "content": "Why is the sky blue?"}]','{}');
INSERT INTO "prompts" VALUES(1,'primes','[{"role": "user", "content": "Name three prime numbers."}]','{}');
INSERT INTO "prompts" VALUES(2,'tides','[{"role": "user", "content": "What causes the tides?"}]','{}');
INSERT INTO "prompts" VALUES(3,'rust','[{"role": "user", "content": "How does iron rust?"}]','{}');
INSERT INTO "prompts" VALUES(4,'bread','[{"role": "user", "content": "Why does bread rise?"}]','{}');
INSERT INTO "prompts" VALUES(5,'moon','[{"role": "user", "content": "Why do we see one side of the moon?"}]','{}');
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "run" VALUES('identity','{"search": "toa", "search_params": {"width": 3, "alpha": 0.01, "tau": 10.0}, "budget": 12, "seed": 3, "plays_in_flight": 1, "sampling": {"temperature": 0.7, "top_p": 1.0, "max_tokens": 2048, "stop": []}, "task": {"name": "alignment", "templates": {"refine": "{prompt}\n\n---\nAnother assistant has drafted this reply to the message above:\n\n<draft>\n{draft}\n</draft>\n\nRead the draft critically: what is wrong, missing, unclear or longer than it should be? Then write the best reply to the message that you can. Keep what is good in the draft and mend what is not. Write only the reply itself; do not mention the draft.", "aggregate": "{prompt}\n\n---\nSeveral assistants have drafted replies to the message above:\n\n{drafts}\n\nCompare the drafts critically; some of what they say may be wrong or one-sided. Then write one reply to the message that is better than each of them. Write only the reply itself; do not mention the drafts.", "draft": "<draft number=\"{number}\">\n{draft}\n</draft>", "answer": null}}, "agents": {"first": {"name": "first", "engine": "scripted"}, "second": {"name": "second", "engine": "scripted"}}, "reward": {"kind": "function", "function": "toa_trl.rewards.function:length_reward"}, "prompts": {"number": 6, "digest": "415e2ca157d069c4"}}');
CREATE INDEX plays_written ON plays (written_s);
COMMIT;

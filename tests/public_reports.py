"""Try the inputs made after public bug reports in ../shared/cases/public_reports.

Each line says "ok" or "FAULT"; a count per kind comes last.

    HF_HUB_OFFLINE=1 python -m tests.public_reports
    HF_HUB_OFFLINE=1 python -m tests.public_reports math server   # parts

Run it from the root of a checkout. It starts a small server on 127.0.0.1 and writes to a temporary
folder only.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.integration.conftest import preloaded
from toa_trl import TOASampler
from toa_trl.errors import ConfigError, ToaError
from toa_trl.types import Prompt, as_messages

CHECKOUT = Path(__file__).resolve().parents[1]
HERE = CHECKOUT.parent / "shared/cases/public_reports"
TMP = Path(tempfile.mkdtemp(prefix="public-reports-"))
COUNT: Counter[tuple[str, bool]] = Counter()
LOGGED: list[str] = []


class Keep(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        LOGGED.append(record.getMessage())


logging.getLogger().addHandler(Keep())


def say(kind: str, name: str, ok: object, what: str = "") -> None:
    COUNT[kind, bool(ok)] += 1
    print(f"{'ok   ' if ok else 'FAULT'} [{kind}] {name}: {what}"[:300], flush=True)


def lines(file: str) -> Any:
    path = HERE / file
    return (
        [json.loads(line) for line in path.read_text().splitlines()]
        if path.suffix == ".jsonl"
        else json.loads(path.read_text())
    )


def score(reward: dict[str, Any], prompt: str, metadata: Mapping[str, Any], response: str) -> float:
    from toa_trl.rewards import make_reward

    async def go() -> Any:
        model = make_reward(reward)
        try:
            return (await model.score(Prompt("p", as_messages(prompt), metadata), [response]))[0]
        finally:
            if hasattr(model, "aclose"):
                await model.aclose()

    return asyncio.run(go())


def math() -> None:
    from toa_trl.rewards.math import MathReward

    async def go() -> Any:
        found: float | str
        model = MathReward()
        for row in lines("math_answers.jsonl"):
            try:
                found = (
                    await model.score(
                        Prompt("p", as_messages("q"), {"answer": row["answer"]}), [row["response"]]
                    )
                )[0]
            except Exception as error:
                found = f"{type(error).__name__}: {error}"
            what = f"{row['answer']!r} <- {row['response'][-70:]!r}: {found}, {row['why']}"
            say(
                "math: " + row["kind"],
                "right" if row["right"] else "wrong",
                found == float(row["right"]),
                what,
            )
        await model.aclose()

    asyncio.run(go())


def columns() -> None:
    found: float | str
    for row in lines("math_columns.jsonl"):
        answer = float("nan") if row.get("as") == "nan" else row["answer"]
        try:
            found = score({"kind": "math"}, "q", {"answer": answer}, row["response"])
            ok = not row.get("error") and found == float(row["right"])
        except ToaError as error:
            found, ok = f"{type(error).__name__}: {error}", row.get("error", False)
        say("math: " + row["kind"], str(row["answer"]), ok, f"{found}; {row['why']}")


def bleu() -> None:
    for row in lines("bleu_languages.jsonl"):
        here, there = [
            score(
                {"kind": "bleu"},
                "q",
                {"reference": row["reference"], "target_language": language},
                row["response"],
            )
            for language in (row["target_language"], row["same_as"])
        ]
        say(
            row["kind"],
            row["target_language"],
            abs(here - there) < 0.01,
            f"{here:.1f}, as {row['same_as']} {there:.1f}",
        )


def long() -> None:
    for row in lines("long_texts.jsonl"):
        LOGGED.clear()
        reward = {**row["reward"], "model": str(CHECKOUT / row["reward"]["model"])}
        try:
            said = str(score(reward, row["prompt"], {}, row["unit"] * row["repeats"]))
            ok = any("context" in text or "longer than" in text for text in LOGGED)
        except ToaError as error:
            said, ok = f"{type(error).__name__}: {error}", True
        say(row["kind"], row["reward"]["kind"], ok, f"{said}; logged: {LOGGED}")


def prompts() -> None:
    from toa_trl.cli.config import PromptConfig
    from toa_trl.data.prompts import load_prompts

    for row in lines("prompts.json"):
        path, LOGGED[:] = HERE / "prompts" / row["file"], []
        if row["expect"] == "config_can_be_named":
            ok, what = (
                any("config" in name for name in PromptConfig.model_fields),
                "no key names the configuration",
            )
            say(row["kind"], row["file"], ok, "" if ok else what)
            continue
        try:
            loaded = load_prompts(str(path))
        except ToaError as error:
            say(row["kind"], row["file"], True, str(error))
            continue
        if row["expect"] == "no_raw_json_prompt":
            asked = loaded[0].messages[-1].content
            say(row["kind"], row["file"], not asked.startswith("[{") or LOGGED, f"asked: {asked!r}")
        else:
            agent = {"name": "a", "engine": "scripted"}
            rollouts = TOASampler(
                [agent], {"kind": "length"}, "best_of_n", 2, {"agent": "a"}
            ).sample(loaded)
            text = rollouts.to_dataset()[0]["metadata"]
            ok = "NaN" not in text and "Infinity" not in text
            say(row["kind"], row["file"], ok, text)


def model_with(template: str) -> str:
    import trl

    folder = TMP / f"student-{template}"
    if not folder.exists():
        shutil.copytree(CHECKOUT / "toa_trl/demo/weights/student", folder)
        words = (Path(trl.__file__).parent / "chat_templates" / f"{template}.jinja").read_text()
        (folder / "chat_template.jinja").write_text(words)
    return str(folder)


def agents() -> None:
    for row in lines("agents.json"):
        agent = {
            "name": "a",
            "engine": "transformers",
            "model": model_with(row["template"]),
            **row["agent"],
        }
        other = {"name": "b", "engine": "scripted"}
        prompt = row["prompt"] if isinstance(row["prompt"], str) else {"prompt": row["prompt"]}
        rollouts = TOASampler(
            [agent, other], {"kind": "length"}, "parallel", 4, sampling={"max_tokens": 4}
        ).sample([prompt])
        failed = {play.error for each in rollouts for play in each.plays if play.error}
        empty = {error for error in failed if "empty" in error}
        say(row["kind"], row["name"], not failed - empty, f"{failed or ''}")


class Server:
    def __init__(self) -> None:
        from aiohttp import web

        self.seen: list[Any] = []
        self.rules: dict[str, Any] = {}
        ready = threading.Event()

        async def chat(request: Any) -> Any:
            body = await request.json()
            self.seen.append(body)
            rule = self.rules[body["model"]]
            if refused := [name for name in rule.get("refuses", ()) if name in body]:
                detail = [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", name],
                        "msg": "Extra inputs are not permitted",
                    }
                    for name in refused
                ]
                return web.json_response({"detail": detail}, status=422)
            return web.json_response(rule["reply"], status=rule.get("status", 200))

        async def models(request: Any) -> Any:
            return web.json_response({"data": []})

        async def serve() -> None:
            app = web.Application()
            app.router.add_post("/v1/chat/completions", chat)
            app.router.add_get("/v1/models", models)
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            ready.set()
            await asyncio.Event().wait()

        threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
        ready.wait()

    def agent(self, name: str, rule: Any, **more: Any) -> dict[str, Any]:
        self.rules[name] = rule
        return {
            "name": name,
            "engine": "openai",
            "model": name,
            "base_url": self.url,
            "max_attempts": 2,
            **more,
        }


def chat_reply(text: str) -> dict[str, Any]:
    return {
        "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def sample(agent: dict[str, Any], run: dict[str, Any], found: dict[str, Any]) -> None:
    try:
        agents = [agent, {"name": "z", "engine": "scripted"}]
        reward = {"kind": "length"}
        sampler = TOASampler(agents, reward, "parallel", 4, limits=run.get("limits"))
        prompts = [f"What is half of {14 + i}?" for i in range(run.get("num_prompts", 1))]
        found["rollouts"] = sampler.sample(prompts)
    except Exception as error:
        found["error"] = error


def server() -> None:
    here = Server()
    for row in lines("server_replies.json"):
        LOGGED.clear()
        run, expect = row["run"], row["expect"]
        more = {key: run[key] for key in ("extra_body", "price") if key in run}
        agent = here.agent(row["name"], row, **more)
        found: dict[str, Any] = {}
        thread = threading.Thread(target=sample, args=(agent, run, found), daemon=True)
        thread.start()
        thread.join(expect.get("within_s", 60))
        if not found:
            say(
                row["kind"],
                row["name"],
                False,
                f"still waiting after {expect.get('within_s', 60)} s; requests {len(here.seen)}",
            )
            continue
        plays = [
            play
            for each in found.get("rollouts", ())
            for play in each.plays
            if play.action.agent == row["name"]
        ]
        errors = " ".join([*(play.error or "" for play in plays), str(found.get("error", ""))])
        texts = [
            play.completion.text for play in plays if play.completion and play.reward is not None
        ]
        reasonings = [play.completion.reasoning for play in plays if play.completion]
        wrong = []
        if "text" in expect and (
            not texts or any(text.strip() != expect["text"] for text in texts)
        ):
            wrong.append(f"text {texts[:1]}")
        if "reasoning" in expect and expect["reasoning"] not in [
            (r or "").strip() for r in reasonings
        ]:
            wrong.append(f"reasoning {reasonings[:1]}")
        wrong += [
            f"text has {part!r}"
            for part in expect.get("text_has_not", ())
            if any(part in text for text in texts)
        ]
        wrong += [
            f"error says {part!r}" for part in expect.get("error_has_not", ()) if part in errors
        ]
        if any_of := expect.get("error_has_one_of"):
            wrong += (
                []
                if any(part.lower() in errors.lower() for part in any_of)
                else ["the reason is not named"]
            )
        if any_of := expect.get("says_one_of"):
            wrong += (
                []
                if any(part.lower() in " ".join([*LOGGED, errors]).lower() for part in any_of)
                else ["nothing is said"]
            )
        if expect.get("not_in_data") and texts:
            sft = []
            try:
                sft = [r["completion"][0]["content"] for r in found["rollouts"].to_sft(top_k=10)]
            except ConfigError as error:
                # the run may have no play that is usable
                wrong += [] if "no prompt gives a sft row" in str(error) else [f"to_sft: {error}"]
            except Exception as error:
                wrong.append(f"to_sft: {type(error).__name__}: {error}")
            wrong += (
                ["the partial text is among the training data"]
                if any(text in sft for text in texts)
                else []
            )
        say(row["kind"], row["name"], not wrong, f"{wrong or ''} {errors[:150]}")


def judge() -> None:
    for row in lines("judge.json"):
        here = Server()
        price = {"price": row["price"]} if "price" in row else {}
        agent = here.agent(
            "a",
            {"reply": chat_reply("It is 7.")},
            **({"price": {"prompt": 0.0, "completion": 0.0}} if price else {}),
        )
        by = here.agent("j", {"reply": chat_reply("Rating: [[7]]")}, **price)
        try:
            rollouts = TOASampler(
                [agent], {"kind": "judge", "agent": by}, "parallel", 4, limits=row["limits"]
            ).sample([f"q {i}" for i in range(5)])
            num = sum(len(each.plays) for each in rollouts)
            say(row["kind"], row["name"], num < 20, f"{num} of 20 plays; {row['expect']}")
        except Exception as error:
            say(row["kind"], row["name"], False, f"{type(error).__name__}: {error}")


TASK = """task: own_sum
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: [], max_gen_toks: 100}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def lm_eval() -> None:
    from toa_trl.evaluation.harness import LmEvalConfig, run_lm_eval

    for row in lines("lm_eval.json"):
        here, folder = Server(), TMP / row["name"]
        folder.mkdir()
        questions = [
            {"question": f"What is {i} + {7 - i}?", "answer": row["answer"]} for i in range(3)
        ]
        (folder / "test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in questions))
        (folder / "own.yaml").write_text(TASK.format(file=folder / "test.jsonl"))
        entry = {
            key: value
            for key, value in here.agent("m", {"reply": chat_reply(row["content"])}).items()
            if key != "max_attempts"
        }
        found = run_lm_eval(entry, LmEvalConfig(tasks="own_sum", include_path=str(folder)))[
            "own_sum"
        ]["exact_match"]
        say(row["kind"], row["name"], found == 1.0, f"exact_match {found}")


def training() -> None:
    for row in lines("training.json"):
        model = (
            model_with(row["template"])
            if row["template"]
            else str(CHECKOUT / "toa_trl/demo/weights/student")
        )
        options = {
            "model_name_or_path": model,
            "dataset_name": HERE / "training" / row["name"],
            "output_dir": TMP / "trained",
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
            "max_length": 256,
        }
        words = [
            f"recipes/{row['recipe']}.py",
            *(str(w) for k, v in options.items() for w in (f"--{k}", v)),
        ]
        done = subprocess.run(preloaded(*words), capture_output=True, text=True, cwd=CHECKOUT)
        said, expect, wrong = done.stdout + done.stderr, row["expect"], []
        if expect.get("no_traceback") and "Traceback" in said:
            wrong.append("a traceback")
        wrong += [f"says {part!r}" for part in expect.get("says_not", ()) if part in said]
        if (any_of := expect.get("says_one_of")) and not any(
            part.lower() in said.lower() for part in any_of
        ):
            wrong.append("nothing is said")
        last = [
            line
            for line in said.splitlines()
            if line.startswith(("error", "WARNING")) or "Error" in line
        ]
        say(
            row["kind"],
            row["name"],
            not wrong,
            f"rc {done.returncode} {wrong or ''} {last[-1] if last else ''}",
        )


if __name__ == "__main__":
    known = {
        each.__name__: each
        for each in (math, columns, bleu, long, prompts, agents, server, judge, lm_eval, training)
    }
    for name in sys.argv[1:] or known:
        known[name]()
    print("\nFaults, of how many inputs, by kind:")
    for kind in dict.fromkeys(kind for kind, _ in COUNT):
        print(f"  {COUNT[kind, False]:3} of {COUNT[kind, False] + COUNT[kind, True]:3}  {kind}")
    shutil.rmtree(TMP, ignore_errors=True)
    sys.stdout.flush()
    os._exit(0)  # a run may still be waiting

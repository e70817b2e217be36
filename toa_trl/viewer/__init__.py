"""A local web page over the folders of runs: `toa-trl view`; and `toa-trl show` on a terminal.

- folder.py, figures.py: which runs there are, and their totals
- plays.py: pages of plays, by query
- tree.py, show.py: the plays of one prompt, with their drafts
- pairs.py: pairs and their marks
- outputs.py: responses of an evaluation's models
- server.py, guard.py: the application, and who may ask
"""

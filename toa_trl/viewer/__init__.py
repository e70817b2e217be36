"""A local web page over the folders of runs: `toa-trl view`, and a tree on a terminal.

Modules:
folder.py    which runs there are      plays.py   pages of plays, by query
figures.py   totals of a run           tree.py    the plays of one prompt, with their drafts
server.py    the application           guard.py   who may ask
"""

"""The report of a run (`page.write_report` writes report.html), and the audit of its data."""

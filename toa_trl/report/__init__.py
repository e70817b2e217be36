"""What happened in a run: `page.write_report` writes report.html; audit/ measures what is wrong with its data."""

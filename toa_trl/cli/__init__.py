"""The command `toa-trl`: typed options, and one module per group of commands."""

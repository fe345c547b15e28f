"""The report: one self-contained page, the same as Markdown, and the pictures. Never imports torch.

Everything here is derived: `build.report` takes rows of results.py's schemas and writes files; nothing is measured,
priced or judged in this folder. Sections build a neutral page (`page.py`), which two templates write out.
"""

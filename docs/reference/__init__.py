"""The pages of the reference, written from the code they describe: one module a page, `page()` its Markdown."""

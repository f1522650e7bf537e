"""The review page: one self-contained HTML file that shows a study, its runs and what their latents respond to."""

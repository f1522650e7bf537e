"""Check the claims of a notes.txt against its figures. Nothing else imports it."""

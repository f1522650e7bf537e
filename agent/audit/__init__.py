"""Check the claims of a notes.txt, or of a text about a study's runs, against figures."""

"""Pictures and pages for people: figures, reports."""

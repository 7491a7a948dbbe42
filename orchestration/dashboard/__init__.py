"""The page for the business: a screen per use case and one for the system, over the published tables."""

"""The search: strategies, evaluators, and the journal that resuming reads."""

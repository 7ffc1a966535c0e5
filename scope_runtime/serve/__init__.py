"""An OpenAI-compatible endpoint whose every answer is under policies, and says so."""

"""Programs that measure what steering costs. Run them; nothing imports them but their own tests."""

"""Everything that touches llama.cpp: load checks, the embedded engine, the probe."""

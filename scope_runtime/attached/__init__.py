"""The hook in somebody else's process: a stock llama-server with the library preloaded, controlled over files.

``interface`` says what a gateway may ask; ``shared`` is it, over shared memory. Imports no llama_cpp.
"""

"""The operators' page on the admin listener, and the JSON routes that it needs beside the control channel's."""

"""A web page that runs an exported network."""

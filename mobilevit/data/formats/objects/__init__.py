"""Formats that annotate objects: boxes, or outlines that are drawn as masks."""

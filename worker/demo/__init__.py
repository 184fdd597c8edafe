"""The main job on real servers with real input, for whoever looks at this for the first time."""

"""`tools/demo`: the main job, in words and numbers a newcomer understands."""

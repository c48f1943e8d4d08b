"""The Recognize Anything tagger, as SeeSR uses it: tags for the prompt, image tokens for the attention."""

"""Parts of text generation: parameters, one prompt's progress, sampling, and the policies that schedule prompts."""

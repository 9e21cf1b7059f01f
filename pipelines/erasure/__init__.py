"""Parts of `forget`: whom to look for, where they are, taking them out, what is elsewhere, carrying it all out."""

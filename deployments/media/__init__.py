"""One truth about media: which formats are taken, and how a stranger's file is read, on the head and on a GPU alike."""

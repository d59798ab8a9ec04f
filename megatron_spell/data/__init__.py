"""Documents from files to a token store (floor 1): read, clean, group into sets, tokenise; the one user of h5py."""

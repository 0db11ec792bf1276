"""`python -m n2n_dist COMMAND ...` is `n2n-dist COMMAND ...`, for `accelerate launch -m n2n_dist train ...`."""

from n2n_dist.cli import main

if __name__ == "__main__":
    main()

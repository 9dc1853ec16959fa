"""`python -m alphapo_cli`, the form that torchrun starts."""

from alphapo_cli.cli.main import main

if __name__ == "__main__":
    main()

"""What only the command line needs: one small file per command."""

"""WHICH trial comes next: search spaces, random draws and Optuna studies. Stands on `cluster`, knows no method."""

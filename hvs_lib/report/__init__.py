"""What is shown: tables, figures and the model card."""

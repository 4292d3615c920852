"""Results for the reader: tables, figures and the model card."""

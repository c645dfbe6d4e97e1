"""What is ingested: tables of pairs and datasets with images, cut into deterministic units."""

"""What a trained model knows of images it has not seen, each number beside what chance would give."""

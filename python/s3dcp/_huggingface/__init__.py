"""What reads and writes folders of safetensors files, as Hugging Face lays them out."""

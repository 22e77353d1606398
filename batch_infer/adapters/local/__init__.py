"""The embedded default: two small models on llama.cpp's own server, for trying the product and testing it offline."""

"""The bundled world: word problems, tiny models that solve them, and how they are trained."""

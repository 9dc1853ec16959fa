from types import SimpleNamespace


class LoRARequest(SimpleNamespace):
    def __init__(self, name: str, number: int, path: str) -> None:
        super().__init__(name=name, number=number, path=path)

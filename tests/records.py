"""TFRecord files and messages of protocol buffers, written without any code of kshot."""


def bitwise(content):
    """The CRC-32C bit by bit, as it is defined."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(content):
    crc = bitwise(content)
    return ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF).to_bytes(4, "little")


def record(content):
    length = len(content).to_bytes(8, "little")
    return length + masked(length) + content + masked(content)


def message(number, content):
    """A field of bytes of a message."""
    size, sizes = len(content), b""
    while size >= 0x80:
        sizes, size = sizes + bytes([size & 0x7F | 0x80]), size >> 7
    return bytes([number << 3 | 2]) + sizes + bytes([size]) + content


def entry(name, value):
    return message(1, message(1, name.encode()) + message(2, value))

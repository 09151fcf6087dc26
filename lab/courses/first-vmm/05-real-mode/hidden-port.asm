; Prints a letter, and then writes to a port without a device.
bits 16
org 0x1000

start:
    mov al, 'a'
    out 0xe9, al
    out 0x42, al
    mov al, 'b'
    out 0xe9, al
    hlt

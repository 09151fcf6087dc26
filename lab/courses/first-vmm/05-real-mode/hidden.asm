; Prints the text behind the code, a byte per OUT, and leaves 42 in AX and at 0x400.
bits 16
org 0x1000

start:
    mov si, text
.byte:
    lodsb
    test al, al
    jz .done
    out 0xe9, al
    jmp .byte
.done:
    mov ax, 42
    mov [0x400], ax
    hlt

text:

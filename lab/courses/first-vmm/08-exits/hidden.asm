; Prints the text that is appended to it, a byte at a time, and halts.
bits 64
org 0x1000
    mov esi, text
.next:
    lodsb
    test al, al
    jz .end
    out 0xE9, al
    jmp .next
.end:
    hlt
    jmp .end
text:

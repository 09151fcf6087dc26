; Prints the text that is appended to it, and jumps to an address without memory, which KVM cannot emulate.
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
    mov eax, 0xD0000000
    jmp rax
text:

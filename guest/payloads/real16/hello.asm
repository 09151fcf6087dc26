; Prints "Hello, world!" on port 0xE9, one exit per byte, then leaves 42.
bits 16
section .start exec
    mov si, message
.next:
    lodsb
    test al, al
    jz .done
    out 0xE9, al
    jmp .next
.done:
    mov ax, 42
    mov [0x400], ax
    hlt
message: db "Hello, world!", 10, 0

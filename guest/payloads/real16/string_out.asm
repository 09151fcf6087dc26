; Prints "Hello, world!" with one `rep outsb`: 14 elements. The number of exits depends on the host.
bits 16
section .start exec
    cld
    mov si, message
    mov cx, message_end - message
    mov dx, 0xE9
    rep outsb
    mov ax, 42
    mov [0x400], ax
    hlt
message: db "Hello, world!", 10
message_end:

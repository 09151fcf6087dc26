; Prints "Hello, KVM!" on the serial port. Linked at 1 MiB, so it runs in the plain memory map.
bits 64
section .start exec
    mov rsi, message
    mov dx, 0x3F8
.next:
    lodsb
    test al, al
    jz .done
    out dx, al
    jmp .next
.done:
    hlt
message: db "Hello, KVM!", 0

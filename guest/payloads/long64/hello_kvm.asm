; "Hello, KVM!" on the serial port, linked at 1 MiB: the 64-bit guest that grew into a VMM.
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

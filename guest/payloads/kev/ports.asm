; Port I/O in every form except strings: in and out, with a constant port and with dx, byte, word and dword. Each width
; has its own FIFO. The constant port returns the low bytes of its value, as many as the access is wide.
%include "kev.inc"
%macro expect 2
    cmp %1, %2
    must_be_equal
%endmacro
    begin64
    mov edx, FIFO
    mov eax, 0x11223344
    out FIFO, al
    out FIFO, ax
    out FIFO, eax
    mov eax, 0x55667788
    out dx, al
    out dx, ax
    out dx, eax

    mov rax, -1                 ; a 32-bit in clears the upper half, narrower ones leave the rest
    in eax, FIFO
    mov ebx, 0x11223344
    expect rax, rbx
    mov rax, -1
    in ax, FIFO
    expect rax, 0xFFFFFFFFFFFF3344
    mov rax, -1
    in al, FIFO
    expect rax, 0xFFFFFFFFFFFFFF44
    in al, dx
    expect al, 0x88
    in ax, dx
    expect ax, 0x7788
    in eax, dx
    expect eax, 0x55667788
    in al, dx                   ; empty
    expect al, 0xFF

    in eax, CONSTANT
    expect eax, 0x600DCAFE
    in ax, CONSTANT
    expect ax, 0xCAFE
    in al, CONSTANT
    expect al, 0xFE
    finish
.wrong:
    hlt

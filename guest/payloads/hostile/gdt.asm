; Clears its own GDT and loads a segment from it.
bits 64
section .start exec
    mov edi, 0xFFFC0000         ; address of the GDT (docs/abi.md, section 2)
    mov qword [rdi + 0x10], 0
    mov eax, 0x10
    mov ds, ax
    hlt

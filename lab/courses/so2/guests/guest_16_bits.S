// A guest in 16-bit code, for real mode: prints a text on port 0xE9, and leaves 42 in AX and at 0x400.
    .intel_syntax noprefix
    .code16
    mov si, offset text
1:  lodsb
    test al, al
    jz 2f
    out 0xe9, al
    jmp 1b
2:  mov ax, 42
    mov [0x400], ax
    hlt
text:
    .asciz "Hello, world!\n"

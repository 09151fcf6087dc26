; Chapter 15: a file that looks like a bzImage with a 64-bit entry, but has no HdrS.
bits 64
    times 0x1f1 db 0
    db 1                        ; 1f1 setup_sects
    times 0x1fe - ($ - $$) db 0
    dw 0xaa55                   ; 1fe boot_flag
    dw 0x6aeb                   ; 200 jump
    db "HdrX"                   ; 202
    dw 0x20f                    ; 206 version
    times 0x236 - ($ - $$) db 0
    dw 1                        ; 236 xloadflags: XLF_KERNEL_64
    dd 2047                     ; 238 cmdline_size
    times 0x400 - ($ - $$) db 0
; At each entry: print a byte, and reset the machine.
    times 0x200 db 0x90
    mov al, '!'
    mov dx, 0x3f8
    out dx, al
    mov al, 0xfe
    out 0x64, al
    hlt

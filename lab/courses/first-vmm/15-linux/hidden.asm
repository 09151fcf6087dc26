; Chapter 15: a small kernel in the form of a bzImage. It prints to COM1 what it finds, and resets the machine.
; The file has a boot sector and three setup sectors. The kernel behind them runs at 1 MiB.
bits 64
org 0

COM1 equ 0x3f8
SETUP_SECTORS equ 3
KERNEL equ 0x100000
LENGTH equ 0x10000

section .text
    times 0x1f1 db 0xcc
    db SETUP_SECTORS            ; 1f1 setup_sects
    dw 0                        ; 1f2 root_flags
    dd LENGTH / 16              ; 1f4 syssize
    dw 0                        ; 1f8 ram_size
    dw 0xffff                   ; 1fa vid_mode
    dw 0                        ; 1fc root_dev
    dw 0xaa55                   ; 1fe boot_flag
    db 0xeb, header_end - header_start ; 200 jump
header_start:
%ifdef NOT_LINUX
    db "HdrX"
%else
    db "HdrS"                   ; 202 header
%endif
    dw 0x20f                    ; 206 version
    dd 0                        ; 208 realmode_swtch
    dw 0                        ; 20c start_sys_seg
    dw 0                        ; 20e kernel_version
    db 0                        ; 210 type_of_loader
    db 1                        ; 211 loadflags: LOADED_HIGH
    dw 0                        ; 212 setup_move_size
    dd KERNEL                   ; 214 code32_start
    dd 0                        ; 218 ramdisk_image
    dd 0                        ; 21c ramdisk_size
    dd 0                        ; 220 bootsect_kludge
    dw 0                        ; 224 heap_end_ptr
    db 0, 0                     ; 226 ext_loader_ver, ext_loader_type
    dd 0                        ; 228 cmd_line_ptr
    dd 0x7fffffff               ; 22c initrd_addr_max
    dd 0x200000                 ; 230 kernel_alignment
    db 1                        ; 234 relocatable_kernel
    db 21                       ; 235 min_alignment
    dw 1                        ; 236 xloadflags: XLF_KERNEL_64
    dd 2047                     ; 238 cmdline_size
    dd 0                        ; 23c hardware_subarch
    dq 0                        ; 240 hardware_subarch_data
    dd 0, 0                     ; 248 payload_offset, payload_length
    dq 0                        ; 250 setup_data
    dq KERNEL                   ; 258 pref_address
    dd 0x100000                 ; 260 init_size
    dd 0                        ; 264 handover_offset
    dd 0                        ; 268 kernel_info_offset
header_end:
    times 512 * (SETUP_SECTORS + 1) - ($ - $$) db 0xcc

; The kernel. An address in it is that of a label plus BASE.
BASE equ KERNEL - 512 * (SETUP_SECTORS + 1)
kernel:
; The 32-bit entry. The same instructions are valid in 64-bit mode: this kernel says that it was entered here.
    mov esp, 0x18000
    mov edx, wrong_entry + BASE
    jmp say_and_end

    times 0x200 - ($ - kernel) db 0x90
; The 64-bit entry.
    mov esp, 0x18000
    mov rbp, rsi
    mov edx, hello + BASE
    call say

; boot_params, at the address in RSI.
    mov edx, no_params + BASE
    test rbp, rbp
    jz say_and_end
    cmp rbp, 0x100000
    jae say_and_end
    mov edx, no_header + BASE
    cmp dword [rbp + 0x202], "HdrS"
    jne say_and_end
    mov edx, with_header + BASE
    call say
    mov edx, no_type + BASE
    cmp byte [rbp + 0x210], 0
    je say_and_end
    mov edx, with_type + BASE
    call say
    mov edx, wrong_segments + BASE
    mov eax, cs
    cmp ax, 0x10
    jne say_and_end
    mov eax, ds
    cmp ax, 0x18
    jne say_and_end

; The command line.
    mov edx, command_line + BASE
    call say
    mov edx, [rbp + 0x228]
    cmp edx, 0x1000
    jb no_line
    cmp edx, 0x100000
    jae no_line
    call say
no_line:
    call new_line

; The memory. All entries are printed: start, end, type.
    movzx ebx, byte [rbp + 0x1e8]
    lea r12, [rbp + 0x2d0]
next_entry:
    test ebx, ebx
    jz entries_end
    mov edx, memory + BASE
    call say
    mov rax, [r12]
    call number
    mov edx, to_text + BASE
    call say
    mov rax, [r12]
    add rax, [r12 + 8]
    call number
    mov edx, type_text + BASE
    call say
    mov eax, [r12 + 16]
    call number
    call new_line
    add r12, 20
    dec ebx
    jmp next_entry
entries_end:

; The initrd: the check gives this file, to which a text and a zero byte are appended.
    mov edx, initrd + BASE
    call say
    mov r12d, [rbp + 0x218]
    mov r13d, [rbp + 0x21c]
    test r13d, r13d
    jz initrd_end
    mov edx, too_low + BASE
    cmp r12d, 0x200000
    jb say_and_end
    lea rax, [r12 + r13]
    cmp rax, 0x10000000
    mov edx, too_high + BASE
    ja say_and_end
    mov edx, content + BASE
    cmp dword [r12 + 0x202], "HdrS"
    jne say_and_end
; Its size is that of the file with the text.
    lea rdx, [r12 + file_end]
    call say
    sub rdx, r12
    mov eax, edx
    mov edx, size_text + BASE
    cmp eax, r13d
    jne say_and_end
initrd_end:
    mov edx, finished + BASE
    call say

; The text that a check appends to this file is in memory behind the kernel, too.
    mov edx, text + BASE

say_and_end:
    call say
    mov al, 0xfe
    out 0x64, al
stop:
    hlt
    jmp stop

; Prints the text at RDX, which ends with a zero byte. RDX is then behind it.
say:
    mov al, [rdx]
    inc rdx
    test al, al
    jz said
    call put
    jmp say
said:
    ret

new_line:
    mov al, 10
; Prints AL. It waits for COM1, up to 100 reads.
put:
    push rax
    push rdx
    push rcx
    mov ah, al
    mov ecx, 100
    mov dx, COM1 + 5
wait_for_port:
    in al, dx
    test al, 0x20
    jnz ready
    dec ecx
    jnz wait_for_port
    mov al, 0xfe
    out 0x64, al
ready:
    mov al, ah
    mov dx, COM1
    out dx, al
    pop rcx
    pop rdx
    pop rax
    ret

; Prints RAX, hexadecimal, without leading zeroes.
number:
    push rbx
    push rcx
    mov rbx, rax
    mov ecx, 60
skip_zeroes:
    test ecx, ecx
    jz digits
    mov rax, rbx
    shr rax, cl
    test al, 15
    jnz digits
    sub ecx, 4
    jmp skip_zeroes
digits:
    mov rax, rbx
    shr rax, cl
    and al, 15
    add al, '0'
    cmp al, '9'
    jbe decimal
    add al, 'a' - '9' - 1
decimal:
    call put
    sub ecx, 4
    jns digits
    pop rcx
    pop rbx
    ret

hello db "64-bit entry", 10, 0
wrong_entry db "entered at the start of the kernel: that is the 32-bit entry", 10, 0
no_params db "RSI is not the address of boot_params below 1 MiB", 10, 0
no_header db "boot_params has no setup header: HdrS is missing at 0x202", 10, 0
with_header db "setup header", 10, 0
no_type db "type_of_loader at 0x210 is 0: Linux takes this loader for one that does not fill the header", 10, 0
with_type db "type of loader", 10, 0
wrong_segments db "CS must be 0x10, and DS 0x18", 10, 0
command_line db "command line: ", 0
memory db "memory: ", 0
to_text db " to ", 0
type_text db " type ", 0
initrd db "initrd: ", 0
too_low db "the initrd is below 2 MiB, where the kernel unpacks itself", 10, 0
too_high db "the initrd reaches beyond the memory", 10, 0
content db "the initrd is not at ramdisk_image", 10, 0
size_text db "ramdisk_size is not the size of the file", 10, 0
finished db "end", 10, 0
    times LENGTH - 64 - ($ - kernel) db 0
file_end:
text:
